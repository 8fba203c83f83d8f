//! Steps of a handler: which of them a later attempt repeats.

mod dead_processes;
mod expiries;
mod handlers;
mod lives;
mod one_process;
mod rejected_steps;
mod resolved;
mod store_faults;
