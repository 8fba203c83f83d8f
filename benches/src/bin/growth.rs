//! Measures how the guard behaves with more records, clients and processes.
//!
//! The argument is the part of the full measurement that is run, 1 by default; a smoke run is `growth 0.01`.

use idempotent_benches::growth::{Scale, Task, measure, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "1".to_owned());
    // The argument of a child process is a task in JSON. A number is JSON too, but no task.
    if let Ok(task) = serde_json::from_str::<Task>(&argument) {
        run(task).await;
    } else {
        measure(Scale(argument.parse()?)).await?.print();
    }
    Ok(())
}
