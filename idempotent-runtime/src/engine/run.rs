//! The future of one request: asked, entered, run and settled.
//!
//! All that is compiled for each handler, beside its own body, is how that is polled.

use std::future;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::Response;
use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;

use super::claim::Entered;
use super::settle::Settling;
use super::{Gate, Passage};
use crate::completion::Completion;
use crate::idempotency::Execution;
use crate::sync::{Mutex, lock};

pin_project! {
    /// A handler on its way to a settled claim.
    pub(super) struct Run<F: Future> {
        #[pin]
        pub(super) handler: F,
        pub(super) into_response: fn(F::Output) -> Response,
        pub(super) stage: Stage,
    }
}

impl<F: Future> Future for Run<F> {
    type Output = Response;

    /// # Panics
    ///
    /// Goes on with the handler's own panic, after the claim is settled.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let mut this = self.project();
        let into_response = *this.into_response;
        this.stage.poll(cx, &mut |cx| match this.handler.as_mut().poll(cx) {
            Poll::Ready(returned) => Poll::Ready(into_response(returned)),
            Poll::Pending => Poll::Pending,
        })
    }
}

/// How far a request has come.
#[allow(clippy::large_enum_variant, reason = "they lie in the box of the handler's future, which is as large")]
pub(super) enum Stage {
    /// The handler's future has the gate, and asks the policy's expressions.
    Asking(Desk),
    Entering(Gate),
    Claiming(BoxFuture<'static, Result<Passage, Response>>),
    Running(Passage),
    Settling(BoxFuture<'static, Response>),
    Done,
}

/// Polls the handler's future.
type Handler<'a> = &'a mut dyn FnMut(&mut Context<'_>) -> Poll<Response>;

impl Stage {
    fn poll(&mut self, cx: &mut Context<'_>, handler: Handler<'_>) -> Poll<Response> {
        loop {
            match self {
                Self::Asking(desk) => match (handler(cx), desk.take()) {
                    (Poll::Pending, Some(gate)) => *self = Self::Entering(gate),
                    (Poll::Pending, None) => return Poll::Pending,
                    // An expression has ended the handler by `?`: nothing is claimed yet.
                    (Poll::Ready(response), _) => {
                        *self = Self::Done;
                        return Poll::Ready(response);
                    }
                },
                Self::Entering(_) => {
                    let Self::Entering(gate) = mem::replace(self, Self::Done) else { unreachable!("matched above") };
                    match gate.enter() {
                        Entered::Now(Ok(passage)) => *self = Self::Running(passage),
                        Entered::Now(Err(answer)) => return Poll::Ready(answer),
                        Entered::Later(claiming) => *self = Self::Claiming(claiming),
                    }
                }
                Self::Claiming(claiming) => match claiming.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(passage)) => *self = Self::Running(passage),
                    Poll::Ready(Err(answer)) => {
                        *self = Self::Done;
                        return Poll::Ready(answer);
                    }
                },
                Self::Running(passage) => {
                    let span = match passage {
                        Passage::Unguarded => return handler(cx),
                        Passage::Claimed(claimed) => claimed.span(),
                        Passage::InTransaction(transaction) => transaction.span(),
                    };
                    let ran = match span.in_scope(|| catch_unwind(AssertUnwindSafe(|| handler(cx)))) {
                        Ok(Poll::Pending) => return Poll::Pending,
                        Ok(Poll::Ready(response)) => Ok(response),
                        Err(panic) => Err(panic),
                    };
                    let settling = match mem::replace(self, Self::Done) {
                        Self::Running(Passage::Claimed(claimed)) => claimed.settle(ran),
                        Self::Running(Passage::InTransaction(transaction)) => {
                            Settling::Later(Box::pin(transaction.settle(ran)))
                        }
                        _ => unreachable!("matched above"),
                    };
                    match settling {
                        Settling::Done(response) => return Poll::Ready(response),
                        Settling::Later(settling) => *self = Self::Settling(settling),
                    }
                }
                Self::Settling(settling) => return settling.as_mut().poll(cx),
                Self::Done => panic!("a future is not polled after it was ready"),
            }
        }
    }
}

/// Where the handler's future leaves the gate when the policy's expressions have been asked.
#[derive(Clone, Default)]
pub(super) struct Desk(Arc<Mutex<Option<Gate>>>);

impl Desk {
    fn put(&self, gate: Gate) {
        *lock(&self.0) = Some(gate);
    }

    fn take(&self) -> Option<Gate> {
        lock(&self.0).take()
    }
}

pub(super) fn lend(gate: Gate) -> (Lent, Awaited) {
    let (desk, execution) = (Desk::default(), gate.execution.clone());
    (Lent { gate, desk: desk.clone() }, Awaited { desk, execution })
}

/// A gate in the hands of the handler's future.
pub struct Lent {
    gate: Gate,
    desk: Desk,
}

impl Lent {
    /// Gives it back, and waits to be let through; a request that is not ends here.
    pub fn give_back(self) -> impl Future<Output = ()> + Send {
        let mut gate = Some(self.gate);
        future::poll_fn(move |_| match gate.take() {
            None => Poll::Ready(()),
            Some(gate) => {
                self.desk.put(gate);
                Poll::Pending
            }
        })
    }
}

impl Deref for Lent {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.gate
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Gate {
        &mut self.gate
    }
}

/// A request whose gate is lent.
pub struct Awaited {
    desk: Desk,
    execution: Option<Arc<Execution>>,
}

impl Awaited {
    /// [`Gate::run`], once `handler` has given the gate back.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        Completion::new(Box::pin(Run { handler, into_response, stage: Stage::Asking(self.desk) }), self.execution)
    }
}
