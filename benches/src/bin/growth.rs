//! What becomes of the guard as it grows.
//!
//! The argument is how much of the full measurement is made, 1 by default; a smoke run is `growth 0.01`.

use idempotent_benches::growth::{Scale, Task, measure, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "1".to_owned());
    // A number is JSON too, and no task.
    if let Ok(task) = serde_json::from_str::<Task>(&argument) {
        run(task).await;
    } else {
        measure(Scale(argument.parse()?)).await?.print();
    }
    Ok(())
}
