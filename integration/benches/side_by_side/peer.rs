//! The other side: Debian's containerd 1.6, over gRPC and through its own `ctr`.

use std::time::Instant;

use integration::Outcome;
use integration::containerd::{Containerd, Grpc, Recipe};
use integration::image::Packed;
use integration::node;
use integration::process::{parent, run, tree};
use tempfile::TempDir;

use crate::{milliseconds, timed, weight};

pub(crate) async fn boot() -> Outcome<(f64, f64)> {
    let base = node::base();
    let (time, containerd) = timed(Containerd::start(&base)).await?;
    Ok((time, weight(&tree(containerd.pid()))))
}

/// Returns the time, and the folder that must not be deleted before the last measurement.
pub(crate) async fn pull(image: &str) -> Outcome<(f64, TempDir)> {
    let containerd = Containerd::start(&node::base()).await?;
    let (time, _) =
        timed(async { containerd.run(&["images", "pull", "--plain-http", image]) }).await?;
    Ok((time, containerd.stop_and_keep().await?))
}

/// A containerd with the small image.
pub(crate) struct Runner {
    containerd: Containerd,
    connection: Grpc,
    recipe: Recipe,
}

impl Runner {
    pub(crate) async fn start((name, image): &(String, Packed)) -> Outcome<Self> {
        let containerd = Containerd::start(&node::base()).await?;
        containerd.run(&["images", "pull", "--plain-http", name])?;
        let recipe = containerd.recipe(name, &image.chain_id(), &["/bin/true"])?;
        let connection = containerd.grpc().await?;
        Ok(Self {
            containerd,
            connection,
            recipe,
        })
    }

    pub(crate) async fn lasting(&mut self, round: usize) -> Outcome<f64> {
        let id = format!("lasting-{round}");
        let (time, code) = timed(self.connection.run(&id, &self.recipe)).await?;
        if code == 0 {
            Ok(time)
        } else {
            Err(format!("true exited with {code}").into())
        }
    }

    pub(crate) fn command(&self, round: usize) -> Outcome<f64> {
        let id = format!("command-{round}");
        let args = [
            "run",
            "--rm",
            "--seccomp",
            &self.recipe.image,
            &id,
            "/bin/true",
        ];
        timed_command(|| run(&mut self.containerd.ctr(&args)))
    }

    /// Starts idle containers and weighs each with its shim.
    pub(crate) fn weigh(&self, count: usize) -> Outcome<Vec<f64>> {
        let ids: Vec<String> = (0..count).map(|number| format!("idle-{number}")).collect();
        for id in &ids {
            self.containerd.run(&[
                "run",
                "--detach",
                "--seccomp",
                &self.recipe.image,
                id,
                "/bin/sleep",
                "1000",
            ])?;
        }
        let tasks = self.containerd.run(&["tasks", "list"])?;
        let pids = tasks
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok());
        let weights = pids.map(with_shim).collect();
        for id in &ids {
            self.containerd.run(&["tasks", "delete", "--force", id])?;
            self.containerd.run(&["containers", "delete", id])?;
        }
        Ok(weights)
    }
}

/// Weighs a container's first process and the shim above it.
pub(crate) fn with_shim(pid: i32) -> f64 {
    weight(
        &[Some(pid), parent(pid)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
    )
}

/// Writes dirty pages out, then takes the time of a command, in milliseconds.
pub(crate) fn timed_command(command: impl FnOnce() -> Outcome<Vec<u8>>) -> Outcome<f64> {
    nix::unistd::sync();
    let start = Instant::now();
    command()?;
    Ok(milliseconds(start.elapsed()))
}
