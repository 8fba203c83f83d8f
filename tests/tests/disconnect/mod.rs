//! A client that disconnects: what still runs, what is recorded, and what its retry gets.

mod clients_that_leave;
mod disconnects;
