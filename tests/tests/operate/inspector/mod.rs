//! The inspector, over real HTTP, on every store.

mod addresses;
mod arguments;
mod browser;
mod counts;
mod damage;
mod hostile;
mod look_up;
mod many_entries;
mod masking;
mod mounting;
mod purging;
mod resolving;
mod shop;
mod shop_handlers;
mod slow_stores;
mod stores;
