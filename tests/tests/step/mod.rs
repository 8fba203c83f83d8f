//! Steps of a handler: what a later attempt repeats.

mod dead_processes;
mod one_process;
mod rejected_steps;
