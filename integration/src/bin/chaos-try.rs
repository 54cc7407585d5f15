//! Tries one round of chaos from the command line.
use integration::chaos::{Blow, Plan, run, seed};
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() -> integration::Outcome {
    let args: Vec<String> = std::env::args().collect();
    let blow = match args[1].as_str() {
        "kill" => Blow::Kill,
        "stop" => Blow::Stop,
        "supervisor" => Blow::Supervisor,
        _ => Blow::Nothing,
    };
    let seconds = args[2].parse()?;
    let verdict = run(Plan::new(blow, seed(), Duration::from_secs(seconds))).await?;
    println!("{verdict}");
    Ok(())
}
