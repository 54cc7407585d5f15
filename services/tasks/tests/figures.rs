//! Figures, not promises: run with `cargo test -p tasks --test figures -- --ignored --nocapture`.

mod support;

use contracts::tasks::{Audit, List, Status};
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

/// `GANTRY_TASKS` says how many; 50 otherwise.
#[actix_rt::test]
#[ignore = "prints figures"]
async fn taking_up_many_tasks_and_what_one_weighs() {
    let count = std::env::var("GANTRY_TASKS").ok();
    let count: usize = count.and_then(|text| text.parse().ok()).unwrap_or(50);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut home = Home::start();
    let before = descriptors();
    for number in 0..count {
        home.run(&format!("c{number}"), &["sleep", "1000"]).await;
    }
    let each = (descriptors() - before) as f64 / count as f64;
    let began = Instant::now();
    home.node.restart("tasks/local").await.unwrap();
    let up = began.elapsed();
    for number in 0..count {
        let task = home.get(&format!("c{number}")).await.unwrap();
        assert_eq!(task.status, Status::Running);
    }
    let known = began.elapsed();
    let page = home.call(List::default()).await.unwrap();
    assert!(!page.items.is_empty());
    let audited = home.call(Audit::default()).await.unwrap();
    println!(
        "{count} tasks: up again in {up:?}, each asked and answered in {known:?}; \
         {each:.2} descriptors each; one look of the auditor {} us, {} shims",
        audited.micros, audited.shims
    );
    for number in 0..count {
        home.delete(&format!("c{number}"), true).await.unwrap();
    }
    home.gone().await;
}
