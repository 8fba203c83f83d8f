//! Tests of the real program on real stores with the entries of real guarded handlers.

mod errors;
mod hostile;
mod purges;
mod resolves;
mod shop;
#[path = "../../../tests/tests/operate/inspector/shop_handlers.rs"]
mod shop_handlers;
mod shows;
mod tls;
