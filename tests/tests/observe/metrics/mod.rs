//! The runtime's metrics, as a Prometheus reads them.

mod feature;
mod in_flight;
mod outcomes;
mod secrets;
mod steps;
mod stores;
mod unknown;
