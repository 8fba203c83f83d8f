//! Measures how the guard behaves with more records, clients and processes, and with more requests for one key.
//!
//! Each measurement runs in a separate process of this program, so that memory which another measurement used does not
//! count.

mod child;
mod clients;
mod crowd;
mod hot_key;
mod map;
mod pauses;
mod processes;
mod records;
mod sizes;

use serde::{Serialize, de::DeserializeOwned};

pub use self::child::Task;
use crate::report::Section;

/// The part of the full measurement that is run: 1 is all of it.
#[derive(Clone, Copy, Debug)]
pub struct Scale(pub f64);

impl Scale {
    /// This many seconds, scaled down.
    fn seconds(self, full: f64) -> f64 {
        full * self.0.clamp(0.1, 1.0)
    }

    /// The first of these in a run that is scaled down, and all of them in a full one.
    fn part_of<T>(self, all: &[T]) -> &[T] {
        if self.0 < 1.0 { &all[..1] } else { all }
    }
}

/// Runs all measurements.
///
/// # Errors
///
/// When a measuring process cannot be started, or fails.
pub async fn measure(scale: Scale) -> anyhow::Result<Section> {
    let mut section = Section::new("Growth");
    sizes::measure(&mut section, scale)?;
    clients::measure(&mut section, scale)?;
    processes::measure(&mut section, scale).await?;
    hot_key::measure(&mut section, scale)?;
    crowd::measure(&mut section, scale)?;
    Ok(section)
}

/// Runs the task of a process, and prints the result.
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
        Task::Crowd(store) => answer(&crowd::rates(store).await),
    }
}
