//! What the runtime says of itself in numbers, as a Prometheus reads it.

mod feature;
mod in_flight;
mod outcomes;
mod secrets;
mod steps;
mod stores;
mod unknown;
