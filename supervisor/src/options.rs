//! What a daemon is started with, and what it makes of configuration and manifest.

use crate::{
    config::{Config, ConfigError},
    graph::{Graph, GraphError},
    manifest::{Manifest, ManifestError},
    registry::{Registry, RegistryError},
    suggest,
};
use contracts::plugin::PluginSpec;
use serde_json::Value;
use std::{fs, path::PathBuf};

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything that is built in.
    pub specs: Vec<PluginSpec>,
    /// Manifests that are built in: name and TOML text.
    pub manifests: Vec<(String, String)>,
    /// The configuration file; `None` for the defaults.
    pub config: Option<PathBuf>,
    /// What the command line says, which counts more than the file.
    pub overrides: Overrides,
    /// The program that hosts plugins when called as `exe plugin IDS…`: this one.
    pub exe: PathBuf,
    /// Version of the build.
    pub version: String,
}

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Folder of durable state.
    pub root: Option<PathBuf>,
    /// Folder of run-time state.
    pub state: Option<PathBuf>,
    /// Name or path of the manifest.
    pub manifest: Option<String>,
    /// Settings of plugins: id, key, value.
    pub settings: Vec<(String, String, Value)>,
}

/// A checked plan of a node. Making one touches nothing but the two files it reads.
#[derive(Debug)]
pub struct Plan {
    /// The settings.
    pub config: Config,
    /// The plugins.
    pub registry: Registry,
    /// Their wiring.
    pub graph: Graph,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest does not fit the build.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The plugins cannot be wired.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Options {
    /// Reads configuration and manifest, and checks that they make a node. Errors: every kind of mistake in them, by name.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        let file = self.config_file()?;
        let manifest = self.manifest(&self.manifest_name(file.as_ref()))?;
        manifest.find_programs()?;
        let foreign = manifest.programs.iter().map(|program| &program.spec);
        let specs: Vec<_> = self.specs.iter().chain(foreign).cloned().collect();
        let config = self.config(file, &specs)?;
        let registry = Registry::new(self.specs.clone(), &manifest)?;
        let graph = Graph::new(&registry)?;
        Ok(Plan {
            config,
            registry,
            graph,
        })
    }

    /// Name and text of the configuration file, if there is one.
    fn config_file(&self) -> Result<Option<(String, String)>, ConfigError> {
        let read = |path: &PathBuf| {
            let file = path.display().to_string();
            let text = fs::read_to_string(path)
                .map_err(|e| ConfigError::new(&file, format!("cannot be read: {e}")))?;
            Ok((file, text))
        };
        self.config.as_ref().map(read).transpose()
    }

    /// Which manifest: the first thing to know of a configuration, for it brings plugins with settings of their own. A
    /// file with mistakes is refused later, with all that is known.
    fn manifest_name(&self, file: Option<&(String, String)>) -> String {
        #[derive(serde::Deserialize)]
        struct Named {
            manifest: String,
        }
        let in_file = || toml::from_str::<Named>(&file?.1).ok();
        let asked = self.overrides.manifest.clone();
        asked
            .or_else(|| Some(in_file()?.manifest))
            .unwrap_or_else(|| "default".into())
    }

    fn config(
        &self,
        file: Option<(String, String)>,
        specs: &[PluginSpec],
    ) -> Result<Config, ConfigError> {
        let mut config = match file {
            None => Config::new(specs)?,
            Some((file, text)) => Config::parse(&file, &text, specs)?,
        };
        let overrides = self.overrides.clone();
        config.root = overrides.root.unwrap_or(config.root);
        config.state = overrides.state.unwrap_or(config.state);
        config.manifest = overrides.manifest.unwrap_or(config.manifest);
        for (plugin, key, value) in overrides.settings {
            config.set(&plugin, &key, value)?;
        }
        config.recheck()?;
        Ok(config)
    }

    fn manifest(&self, name: &str) -> Result<Manifest, PlanError> {
        let mut built_in = self.manifests.iter();
        if let Some((name, text)) = built_in.find(|(known, _)| known == name) {
            return Ok(Manifest::parse(name, text)?);
        }
        let text = fs::read_to_string(name).map_err(|e| {
            let known = self.manifests.iter().map(|(name, _)| name.as_str());
            let hint = suggest::hint(name, known);
            ConfigError::new(
                "manifest",
                format!("{name:?} is neither built in nor a readable file ({e}){hint}"),
            )
        })?;
        Ok(Manifest::parse(name, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::spec;

    fn options() -> Options {
        Options {
            specs: vec![spec("a/x", &[])],
            manifests: vec![("default".into(), "plugins = ['a/x']".into())],
            config: None,
            overrides: Overrides::default(),
            exe: "/proc/self/exe".into(),
            version: "0".into(),
        }
    }

    #[test]
    fn a_plan_is_made_of_defaults_and_options() {
        let mut options = options();
        options.overrides.root = Some("/r".into());
        let plan = options.plan().unwrap();
        assert_eq!(plan.config.root, PathBuf::from("/r"));
        assert_eq!(plan.registry.processes().len(), 1);
    }

    #[test]
    fn settings_of_a_program_are_checked_as_any_other_and_laid_over_its_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let (manifest, config) = (folder.path().join("m.toml"), folder.path().join("g.toml"));
        let text = "plugins = ['a/x']\n[[exec]]\nid = 'greeter/x'\ncommand = ['/bin/true']\n[exec.settings]\ngreeting = 'hello'\nloud = false";
        fs::write(&manifest, text).unwrap();
        let plan = |settings: &str| {
            let text =
                format!("version = 1\nmanifest = {manifest:?}\n[plugins.'greeter/x']\n{settings}");
            fs::write(&config, text).unwrap();
            let mut options = options();
            options.config = Some(config.clone());
            options.plan()
        };
        let settings = plan("greeting = 'hi'")
            .unwrap()
            .config
            .settings("greeter/x");
        assert_eq!(settings, r#"{"greeting":"hi","loud":false}"#);
        let error = plan("greting = 'hi'").unwrap_err().to_string();
        assert!(error.ends_with("g.toml:4: unknown key \"greting\" in plugins.\"greeter/x\"; did you mean \"greeting\""), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |change: fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            options.plan().unwrap_err().to_string()
        };
        let manifest = refused(|o| o.overrides.manifest = Some("defualt".into()));
        assert!(manifest.contains("did you mean \"default\""), "{manifest}");
        let root = refused(|o| o.overrides.root = Some("r".into()));
        assert_eq!(root, "option root: root r: must be an absolute path");
        let config = refused(|o| o.config = Some("/nowhere/g.toml".into()));
        assert!(
            config.starts_with("/nowhere/g.toml: cannot be read"),
            "{config}"
        );
    }
}
