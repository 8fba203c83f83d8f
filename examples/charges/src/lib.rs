//! A small payments API: its routes, and what they need. `main.rs` serves them, and `tests/` shows how such handlers
//! are tested.

pub mod api;
pub mod error;
pub mod ledger;
pub mod network;
pub mod signature;
pub mod sqlite;
pub mod user;
