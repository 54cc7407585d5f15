//! Temporary: how long the tail of a pull takes.
use integration::Outcome;
use integration::image::sample;
use integration::node::Node;
use integration::registry::Registry;
use std::time::Duration;

#[actix_rt::test]
async fn tail() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::layers(10, 20 << 20)?;
    let name = registry.push(&image, "layers", "1").await?;
    let node = Node::start().await?;
    for round in 0..4 {
        let mut events = node.events(0).await?;
        node.pull(&name).await?;
        let rows = std::cell::RefCell::new(Vec::new());
        let ended = std::cell::Cell::new(0);
        events.find(Duration::from_secs(20), |record| {
            let data = record.data.clone();
            rows.borrow_mut().push((record.event.clone(), data["time"].as_str().unwrap_or_default().to_owned(), data["event"].to_string().chars().take(60).collect::<String>()));
            if record.event == "/operations/end" { ended.set(ended.get() + 1); }
            ended.get() == 2 * round + 1
        }).await?;
        let from = rows.borrow().iter().rposition(|row| row.0 == "/operations/start").unwrap_or(0);
        println!("--- round {round}"); let rows = rows.into_inner();
        for row in &rows[from..] { println!("{} {} {}", &row.1[14..], row.0, row.2); }
        node.delete(&node.at(&format!("/images/{name}"))).await?.ok()?;
        node.collect().await?;
    }
    node.stop_clean().await
}
