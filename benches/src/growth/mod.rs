//! What becomes of the guard as it grows: more records, clients, processes, and more requests for one key.
//!
//! Each measurement runs in a process of its own, which this program starts as itself: what another one left in memory
//! shall not count.

mod child;
mod clients;
mod hot_key;
mod map;
mod pauses;
mod processes;
mod records;
mod sizes;

use serde::{Serialize, de::DeserializeOwned};

pub use self::child::Task;
use crate::report::Section;

/// How much of the full measurement is made: 1 is all of it.
#[derive(Clone, Copy, Debug)]
pub struct Scale(pub f64);

impl Scale {
    /// So many seconds, scaled down.
    fn seconds(self, full: f64) -> f64 {
        full * self.0.clamp(0.1, 1.0)
    }
}

/// Measures all of it.
///
/// # Errors
///
/// When a process that measures cannot be started, or fails.
pub async fn measure(scale: Scale) -> anyhow::Result<Section> {
    let mut section = Section::new("Growth");
    sizes::measure(&mut section, scale)?;
    clients::measure(&mut section, scale)?;
    processes::measure(&mut section, scale).await?;
    hot_key::measure(&mut section, scale)?;
    Ok(section)
}

/// Does what a process was started for, and prints what came out of it.
pub async fn run(task: Task) {
    fn answer<T: Serialize + DeserializeOwned>(outcome: &T) {
        println!("{}", serde_json::to_string(outcome).expect("figures are plain data"));
    }
    match task {
        Task::Records { size, pace } => answer(&sizes::records(size, pace).await),
        Task::Map(size) => answer(&map::measure(size)),
        Task::Clients { clients, seconds } => answer(&clients::rates(clients, seconds).await),
        Task::Pairs(work) => answer(&processes::pairs(&work).await),
        Task::HotKey { store, seconds } => answer(&hot_key::rates(store, seconds).await),
    }
}
