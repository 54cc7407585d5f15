//! Four clients at full speed while parts of the node die: nothing is lost, nothing is doubled, no request fails.
//!
//! Small here; `GANTRY_CHAOS_SECONDS=60` makes each round as long as the promise, `GANTRY_SEED` repeats one.

use std::time::Duration;

use integration::Outcome;
use integration::chaos::{Blow, Plan, run, seed};

/// How long a round lasts in a test run.
fn length(seconds: u64) -> Duration {
    let given = std::env::var("GANTRY_CHAOS_SECONDS").ok();
    let given = given.and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(seconds))
}

async fn survived(blow: Blow, seconds: u64) -> Outcome {
    let verdict = run(Plan::new(blow, seed(), length(seconds))).await?;
    println!("{verdict}");
    assert!(verdict.requests > 0);
    assert!(verdict.problems.is_empty(), "{blow:?}: {verdict}");
    Ok(())
}

#[actix_rt::test]
async fn any_plugin_is_killed_every_second_and_no_client_notices() -> Outcome {
    survived(Blow::Kill, 15).await
}

#[actix_rt::test]
async fn any_plugin_is_stopped_for_a_while_and_no_client_notices() -> Outcome {
    survived(Blow::Stop, 8).await
}

#[actix_rt::test]
async fn the_supervisor_is_killed_and_no_client_notices() -> Outcome {
    survived(Blow::Supervisor, 8).await
}
