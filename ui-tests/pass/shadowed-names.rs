//! The expansion does not depend on names of the user: no prelude, other items under the usual names, the attribute
//! renamed.

#![no_implicit_prelude]
#![deny(warnings)]
#![allow(dead_code)]

use ::idempotent_runtime::idempotent as once;
use ::std::string::String;

mod axum {}
mod core {}
mod inventory {}
mod std {}

struct Box;
struct Err;
struct Ok;
struct Policy;
struct Response;

#[once(caller = body, fingerprint = body.len(), in_flight = wait("1s"), cache = all)]
async fn create_charge(body: String) -> &'static str {
    if body.is_empty() {
        return "empty";
    }
    "charged"
}

fn main() {
    ::std::assert_eq!(::std::iter::Iterator::count(::idempotent_runtime::policies()), 1);
}
