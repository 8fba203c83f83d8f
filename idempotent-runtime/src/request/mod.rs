//! The pipeline of one request, one file for each stage, in the order in which a request passes through.
//!
//! ```text
//!  extract      Guarded takes the request from axum, and reads what the guard needs: input
//!     │         a crash leaves nothing
//!     ▼
//!  gate         takes key, caller and fingerprint from the policy's expressions: key_expression
//!     │         a crash leaves nothing
//!     ▼
//!  admission    finds registry, store and fingerprint; answers a request that cannot claim; one without a key runs unguarded
//!     │         a crash leaves nothing
//!     ▼
//!  claim        asks the store ───▶ completed: replay sends the record
//!     │            │           └──▶ in flight: wait looks until the other request has ended, or rejects at once
//!     │            └──────────────▶ anything else: a rejection
//!     │         a crash leaves a claim under which nothing ran: the next request takes it over when its lease has expired;
//!     │         under `after_crash = "reject"` an operator purges it
//!     ▼
//!  run          passage lets the handler run; completion polls it in place, and spawns it if its client disconnects
//!     │         a crash leaves a claim under which something may have run: attempt + 1, or `outcome_unknown`;
//!     │         a transaction leaves nothing
//!     ▼
//!  response     decides by the policy whether the response is recorded: response_body, response_mark
//!     │         a crash leaves the same
//!     ▼
//!  settle       completes, releases or keeps the claim, and wakes waiting requests; settle_transaction commits instead
//!               a crash before the store has answered leaves the same; after that, every retry gets the record
//! ```
//!
//! [`context`] has what these stages share for one request: whether the handler outlives its client, and which guards are around
//! it. [`coverage`] finds a guard around the request that has already claimed its key, and [`covered_run`] runs under that claim.
//! [`covered_runs`] counts those that do, so that the claim ends after them; [`client`] tells clients apart where a request does
//! not know its guards, and [`destination`] the handlers that have one policy.
//! [`idempotency`] shows a part of the context to the handler; [`step_place`] finds the claim of the steps that it takes, and what
//! [`step_context`] keeps of them.

pub(crate) mod admission;
pub(crate) mod body;
pub(crate) mod claim;
pub(crate) mod client;
pub(crate) mod completion;
pub(crate) mod context;
pub(crate) mod coverage;
pub(crate) mod covered_run;
pub(crate) mod covered_runs;
pub(crate) mod destination;
pub(crate) mod detach_state;
pub(crate) mod extract;
pub(crate) mod gate;
pub(crate) mod guards_around;
pub(crate) mod holding;
pub(crate) mod idempotency;
pub(crate) mod input;
pub(crate) mod key_expression;
pub(crate) mod link;
pub(crate) mod ownership;
pub(crate) mod passage;
pub(crate) mod replay;
pub(crate) mod response;
pub(crate) mod response_body;
pub(crate) mod response_mark;
pub(crate) mod run;
pub(crate) mod settle;
pub(crate) mod settle_transaction;
pub(crate) mod step_context;
pub(crate) mod step_place;
pub(crate) mod wait;
