//! The real program, on real stores that hold what real guarded handlers left behind.

mod errors;
mod purges;
mod shop;
mod shows;
