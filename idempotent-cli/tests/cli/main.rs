//! The real program, on real stores that hold what real guarded handlers left behind.

mod errors;
mod hostile;
mod purges;
mod resolves;
mod shop;
#[path = "../../../tests/tests/operate/inspector/shop_handlers.rs"]
mod shop_handlers;
mod shows;
mod tls;
