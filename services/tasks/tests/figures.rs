//! Figures, not promises: run with `cargo test -p tasks --test figures -- --ignored --nocapture`.

mod support;

use std::time::Instant;
use support::*;

const STEPS: [&str; 5] = ["create", "start", "wait", "delete", "all"];

#[actix_rt::test]
#[ignore = "prints figures"]
async fn the_life_of_true_in_milliseconds() {
    let home = Home::start();
    let mut kinds = vec![("gantry, embedded", ""), ("gantry, runc", "runc")];
    if std::path::Path::new("/usr/bin/containerd-shim-runc-v2").exists() {
        kinds.push(("containerd-shim-runc-v2", "io.containerd.runc.v2"));
    }
    let mut found = vec![Vec::new(); kinds.len()];
    for _ in 0..20 {
        for ((_, runtime), cycles) in kinds.iter().zip(&mut found) {
            home.container_with("true", &["true"], runtime, |_| {});
            let mut times = vec![Instant::now()];
            home.create("true").await.unwrap();
            times.push(Instant::now());
            home.go("true").await.unwrap();
            times.push(Instant::now());
            home.wait("true").await.unwrap();
            times.push(Instant::now());
            home.delete("true", false).await.unwrap();
            times.push(Instant::now());
            let mut cycle: Vec<f64> = times
                .windows(2)
                .map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0)
                .collect();
            cycle.push((times[4] - times[0]).as_secs_f64() * 1000.0);
            cycles.push(cycle);
        }
    }
    println!(
        "{:26}{}",
        "median of 20, ms",
        STEPS.map(|step| format!("{step:>10}")).join("")
    );
    for ((name, _), cycles) in kinds.iter().zip(&found) {
        let median = |step: usize| {
            let mut all: Vec<f64> = cycles.iter().map(|cycle: &Vec<f64>| cycle[step]).collect();
            all.sort_by(f64::total_cmp);
            format!("{:10.1}", all[all.len() / 2])
        };
        println!(
            "{name:26}{}",
            (0..STEPS.len()).map(median).collect::<String>()
        );
    }
    home.gone().await;
}
