//! The pipeline of one request, one file for each stage, in the order in which a request passes through.
//!
//! ```text
//!  extract      Guarded takes the request from axum; input reads the head; claim_input digests target and body, and
//!     │         leaves the body whole: request_body; if the policy has its own rules for keys or methods, the body is
//!     │         read only when the gate has applied these rules; deferred extracts the last arguments, unless they
//!     │         come after the claim: plain_body
//!     │         a crash leaves nothing
//!     ▼
//!  identify     takes key and caller, and digests the value of `fingerprint = expr`, from the policy's expressions:
//!     │         key_expression, caller_expression; hands over an admission and an identity; a request without a key
//!     │         leaves the pipeline here: it runs unguarded, or in its transaction
//!     │         a crash leaves nothing
//!     ▼
//!  fingerprint  joins the digests of the request, finds its store and its permits: the result is a keyed_request;
//!     │         rejects a request that cannot claim; a request under another guard's claim runs without its own
//!     │         claim: covered_run
//!     │         a crash leaves nothing
//!     ▼
//!  claim        asks the store ───▶ completed: replay sends the record
//!     │            │           └──▶ in flight: wait polls until the other request has ended, or rejects at once
//!     │            └──────────────▶ anything else: rejected. beyond_limit rejects a request that may not run
//!     │         a crash leaves a claim under which nothing ran: the next request takes the claim over when its lease
//!     │         has expired; under `after_crash = "reject"` an operator resolves the claim
//!     ▼
//!  run          handler_run says how the handler may run, or begins its transaction; guarded_run is its state;
//!     │         extracts the arguments after the claim: deferred; polls the handler
//!     │         a crash leaves a claim under which something may have run: attempt + 1, or `outcome_unknown`;
//!     │         a transaction leaves nothing
//!     ▼
//!  respond      decides by the policy whether the response is recorded: response_body, response_mark; settle calls it
//!     │         a crash leaves the same
//!     ▼
//!  settle       completes, releases or keeps the claim, and wakes waiting requests;
//!               settle_transaction commits or rolls back;
//!               streaming sends a response of unknown length and settles the claim before its end
//!               a crash before the store has answered leaves the same; after that, every retry gets the record
//! ```
//!
//! [`run`] drives the stages: its future polls the expressions, claims, polls the handler and settles. Up to the claim,
//! a [`Gate`](identify::Gate) carries the request. [`completion`] polls that future in place, and spawns it if its
//! client disconnects. [`expansion`] contains the functions that the attribute calls around a handler's body.
//!
//! # What the stages share
//!
//! An [`Execution`](context::Execution) belongs to one request. Extractors, the guard and the running future share it.
//!
//! | file | question that it answers |
//! |---|---|
//! | [`link`] | Which execution does this request belong to? A clone of a request gets its own. |
//! | [`context`] | What does each stage know about this execution: arrival, identity, claim, run, answer? |
//! | `gate_slot` | How does the gate get into the handler's future, which evaluates the expressions, and back? |
//! | [`ownership`] | An extractor created the execution: does the handler own it, or a handler that got the request? |
//! | [`keyed_request`] | With which key, fingerprints and permits does a request claim? Is a fingerprint its own? |
//! | [`body`] | Which frames of a body were read already? A later reader still gets them. |
//! | [`upload`] | Which bytes does a client still send when the request is answered without the handler? |
//! | `transaction_argument` | How does a handler get its `Tx`? (features `sqlite`, `postgres`) |
//! | [`detach_state`] | Does the handler continue when its client disconnects, and where? |
//! | [`idempotency`] | What does the handler see of its execution? |
//!
//! # Guards in guards
//!
//! A layer can be around an annotated handler, and a handler can send requests to other handlers. If they have one key,
//! the inner handler runs under the claim of the outer guard.
//!
//! | file | question that it answers |
//! |---|---|
//! | [`guards_around`] | Which guard around this request has the same key? May the handler use its key and steps? |
//! | [`coverage`] | Which guard is around a request without a link? The one whose handler this thread polls. |
//! | [`request_head`], [`client`], [`destination`] | Do two requests have the same client? Did they arrive at the same place? |
//! | [`covered_run`], [`covered_runs`] | Which runs are in progress under another guard's claim? It ends after them. |
//! | [`active_guard`] | Is a guard's claim open? When the active guard is dropped, nothing runs under it any more. |
//! | [`step_place`], [`step_context`] | Under which claim is a step recorded, and what does the execution keep of its steps? |
//! | [`response_mark`] | Which guard answers for this response? |

pub(crate) mod active_guard;
pub(crate) mod admission;
pub(crate) mod beyond_limit;
pub(crate) mod body;
pub(crate) mod caller_expression;
pub(crate) mod claim;
pub(crate) mod claim_input;
pub(crate) mod client;
pub(crate) mod completion;
pub(crate) mod context;
pub(crate) mod coverage;
pub(crate) mod covered_run;
pub(crate) mod covered_runs;
pub(crate) mod deferred;
pub(crate) mod destination;
pub(crate) mod detach_state;
pub(crate) mod expansion;
pub(crate) mod extract;
pub(crate) mod fingerprint;
pub(crate) mod gate_slot;
pub(crate) mod guarded_run;
pub(crate) mod guards_around;
pub(crate) mod handler_run;
pub(crate) mod idempotency;
pub(crate) mod identify;
pub(crate) mod identity;
pub(crate) mod input;
pub(crate) mod key_expression;
pub(crate) mod keyed_request;
pub(crate) mod link;
pub(crate) mod ownership;
pub(crate) mod plain_body;
pub(crate) mod replay;
pub(crate) mod request_body;
pub(crate) mod request_head;
pub(crate) mod respond;
pub(crate) mod response_body;
pub(crate) mod response_mark;
pub(crate) mod run;
pub(crate) mod settle;
pub(crate) mod settle_transaction;
pub(crate) mod step_context;
pub(crate) mod step_place;
pub(crate) mod streaming;
#[cfg(feature = "__transactions")]
pub(crate) mod transaction_argument;
pub(crate) mod upload;
pub(crate) mod wait;
