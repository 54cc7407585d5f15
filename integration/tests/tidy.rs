//! The rules of the house that a machine can check, from the manifests and the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration::Outcome;
use integration::process::run;
use serde_json::Value;

/// Lines of a file from which on it holds more than one idea.
const LONGEST: usize = 900;

fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// One member of the workspace, with the names of what it imports.
struct Member {
    name: String,
    folder: PathBuf,
    imports: BTreeSet<String>,
    test_imports: BTreeSet<String>,
}

fn members() -> Outcome<Vec<Member>> {
    let args = [
        "metadata",
        "--offline",
        "--no-deps",
        "--format-version",
        "1",
    ];
    let metadata: Value =
        serde_json::from_slice(&run(Command::new("cargo").args(args).current_dir(top()))?)?;
    let packages = metadata["packages"].as_array().ok_or("no packages")?;
    packages
        .iter()
        .map(|package| member(package).ok_or_else(|| format!("cannot read {package}").into()))
        .collect()
}

fn member(package: &Value) -> Option<Member> {
    let manifest = Path::new(package["manifest_path"].as_str()?);
    let dependencies = package["dependencies"].as_array()?;
    let named = |test: bool| {
        let wanted = dependencies
            .iter()
            .filter(move |one| (one["kind"] == "dev") == test);
        wanted
            .filter_map(|one| Some(one["name"].as_str()?.to_owned()))
            .collect()
    };
    Some(Member {
        name: package["name"].as_str()?.to_owned(),
        folder: manifest.parent()?.strip_prefix(top()).ok()?.to_owned(),
        imports: named(false),
        test_imports: named(true),
    })
}

/// How high a member stands: it imports only what is lower.
fn floor(folder: &Path) -> u32 {
    match folder.to_str().unwrap_or_default() {
        "contracts" => 0,
        "contracts/filter" | "contracts/reference" | "bus/codec" | "bus/faults" | "bus/logfile" => {
            1
        }
        "bus" => 2,
        "bus/ledger" => 3,
        "supervisor" | "integration/conformance" => 4,
        "compose" => 5,
        "integration" => 6,
        service if service.starts_with("services/") => 4,
        other => panic!("{other} has no floor yet; say in tidy.rs who may import it"),
    }
}

#[test]
fn imports_go_down_and_never_to_a_neighbour() -> Outcome {
    let members = members()?;
    let by_name = |name: &str| members.iter().find(|member| member.name == name);
    let mut wrong = Vec::new();
    for member in &members {
        let own = floor(&member.folder);
        for import in member.imports.iter().filter_map(|name| by_name(name)) {
            if floor(&import.folder) >= own {
                wrong.push(format!("{} imports {}", member.name, import.name));
            }
        }
        // Every driver and the whole node run the same suites; the vocabulary pins its bytes.
        let for_tests =
            |name: &str| name == "conformance" || (member.name == "contracts" && name == "codec");
        for import in member.test_imports.iter().filter_map(|name| by_name(name)) {
            if floor(&import.folder) >= own
                && import.name != member.name
                && !for_tests(&import.name)
            {
                wrong.push(format!(
                    "the tests of {} import {}",
                    member.name, import.name
                ));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

#[test]
fn some_packages_are_known_to_one_place_only() -> Outcome {
    let table: [(&str, &[&str]); 6] = [
        ("bincode", &["bus/codec"]),
        ("redb", &["bus/ledger", "services/"]),
        ("actix-web", &["services/gateway"]),
        ("reqwest", &["services/transfer"]),
        ("libcontainer", &["services/shim"]),
        ("supervisor", &["compose"]),
    ];
    let members = members()?;
    for (package, places) in table {
        for member in members
            .iter()
            .filter(|member| member.imports.contains(package))
        {
            let folder = member.folder.to_string_lossy();
            assert!(
                places.iter().any(|place| folder.starts_with(place)),
                "{folder} imports {package}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_vocabulary_does_no_io_and_knows_no_runtime() -> Outcome {
    let members = members()?;
    // What ends a process for a test must touch it.
    let is_pure = |member: &&Member| floor(&member.folder) < 2 && member.name != "faults";
    for pure in members.iter().filter(is_pure) {
        for package in ["tokio", "actix", "actix-rt", "rustix", "nix", "redb"] {
            assert!(
                !pure.imports.contains(package),
                "{} imports {package}",
                pure.name
            );
        }
    }
    Ok(())
}

#[test]
fn versions_stand_in_one_place() -> Outcome {
    for member in members()? {
        let path = top().join(&member.folder).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&path)?.parse()?;
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest
                .get(section)
                .and_then(toml::Value::as_table)
                .into_iter()
                .flatten()
            {
                let inherited = value.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(
                    inherited,
                    Some(true),
                    "{name} in {} has a version of its own",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn the_top_level_is_as_the_card_says() -> Outcome {
    let mut found: Vec<String> = Vec::new();
    for entry in fs::read_dir(top())? {
        found.push(entry?.file_name().to_string_lossy().into_owned());
    }
    found.retain(|name| !name.starts_with('.') && name != "target");
    found.sort();
    let card = [
        "Cargo.lock",
        "Cargo.toml",
        "README.md",
        "bus",
        "compose",
        "contracts",
        "integration",
        "services",
        "supervisor",
    ];
    assert_eq!(found, card);
    Ok(())
}

/// Every Rust source of the house with its text.
fn sources() -> Outcome<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut open = [
        "bus",
        "compose",
        "contracts",
        "integration",
        "services",
        "supervisor",
    ]
    .map(|name| top().join(name))
    .to_vec();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((
                    path.strip_prefix(top())?.to_owned(),
                    fs::read_to_string(&path)?,
                ));
            }
        }
    }
    Ok(found)
}

#[test]
fn no_file_is_longer_than_a_reader_bears() -> Outcome {
    let long = sources()?
        .into_iter()
        .filter(|(_, text)| text.lines().count() > LONGEST);
    assert_eq!(
        long.map(|(path, _)| path).collect::<Vec<_>>(),
        Vec::<PathBuf>::new()
    );
    Ok(())
}

#[test]
fn nothing_is_left_for_later() -> Outcome {
    // Put together here, or this file would be the first to be found.
    let marks = ["to do!(", "unimple mented!(", "FIX ME", "TO DO", "X XX"]
        .map(|mark| mark.replace(' ', ""));
    for (path, text) in sources()? {
        for (number, line) in text.lines().enumerate() {
            let found = marks.iter().find(|mark| line.contains(mark.as_str()));
            assert_eq!(found, None, "{}:{}", path.display(), number + 1);
        }
    }
    Ok(())
}

#[test]
fn tests_are_sentences_and_wait_for_states() -> Outcome {
    let (sleeping, prefix) = (["sle", "ep("].concat(), ["fn te", "st_"].concat());
    for (path, text) in sources()? {
        let is_test = path.starts_with("integration")
            || path.components().any(|part| part.as_os_str() == "tests");
        for (number, line) in text.lines().enumerate() {
            assert!(
                !line.contains(&prefix),
                "{}:{}: a prefix says nothing",
                path.display(),
                number + 1
            );
            assert!(
                !is_test || !line.contains(&sleeping) || is_pause_between_looks(line),
                "{}:{}: wait for a state",
                path.display(),
                number + 1
            );
        }
    }
    Ok(())
}

/// A wait for a state, with a bound, pauses between two looks at it: for some milliseconds, written with one digit.
fn is_pause_between_looks(line: &str) -> bool {
    let millis = line.split_once("from_millis(").map(|(_, rest)| rest);
    millis.is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_digit()) && rest[1..].starts_with(')')
    })
}

#[test]
fn every_crate_opens_with_a_page_that_says_what_it_owns() -> Outcome {
    for member in members()? {
        let folder = top().join(&member.folder).join("src");
        let path = ["lib.rs", "main.rs"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.exists());
        let text = fs::read_to_string(path.ok_or_else(|| format!("{} has no root", member.name))?)?;
        let page = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        assert!(page >= 3, "{}: the page has {page} lines", member.name);
    }
    Ok(())
}
