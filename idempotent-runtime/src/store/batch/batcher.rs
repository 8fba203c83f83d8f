//! Operations of many callers that go out together: as one statement, one script or one pipeline.
//!
//! While [`Sending::under_way`] calls are under way, further operations gather in a queue. If there are
//! fewer callers, each caller sends its own operation at once and does not wait for other callers.
//!
//! A batch is sent by a task that no caller owns. When the batch is answered, the task sends what has gathered meanwhile in the
//! next one. If nothing has, it gives its [`Permit`] back, and the first caller that waits is told. The task also ends when all
//! callers of its batch have stopped waiting. The task may be held up, by a thread that a handler blocks. So a caller that has
//! waited for [`PATIENCE`] sends the queued operations, with or without a permit.
//!
//! If the batch has no answer for an operation, the caller sends that operation in a call of its own. If the server rejects the
//! batch, the cause may be only one of the operations, and sending an operation again does no harm. So each caller then sends its
//! own.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::oneshot;

use crate::deadline::Deadline;
use crate::store::batch::queue::{BatchQueue, Job, Joined, Lead, Outcome, PATIENCE, Permit, Queued, Reply};
use crate::store::batch::sending::Sending;
use crate::store::error::StoreError;
use crate::store::line::Call;

pub(crate) struct Batcher<S: Sending> {
    sending: S,
    queue: Arc<BatchQueue<S>>,
}

impl<S: Sending> Batcher<S> {
    pub(crate) fn new(sending: S) -> Arc<Self> {
        let queue = BatchQueue::new(sending.under_way());
        Arc::new(Self { sending, queue })
    }

    /// Sends the operation in a batch, unless its caller withdraws `call` first.
    ///
    /// # Errors
    ///
    /// If there is no session. Then the operation was not sent.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before the operation is taken into a batch, the operation is never sent. If it is dropped later, the
    /// operation may take effect.
    pub(crate) async fn submit(
        self: &Arc<Self>,
        operation: &Arc<S::Operation>,
        call: Option<Arc<Call>>,
    ) -> Result<Outcome<S>, StoreError> {
        let (mut queued, mut permit) = match self.queue.join(operation, call) {
            Joined::Alone(permit) => return Ok(Outcome::Alone(Some(self.connect(Some(permit)).await?))),
            Joined::Waiting(queued, permit) => (queued, permit),
        };
        let patience = Deadline::after(PATIENCE);
        loop {
            if permit.is_none() {
                permit = match reply_or_turn(&mut queued, patience).await {
                    Some(Reply::Outcome(outcome)) => return Ok(outcome),
                    Some(Reply::Turn(reply)) => match queued.begin_turn(reply) {
                        // Another caller has taken the permit. The patience goes on, so this ends.
                        None => continue,
                        permit => permit,
                    },
                    None => self.queue.free_permit(),
                };
            }
            let mut beginning = pin!(self.begin());
            let session = loop {
                tokio::select! {
                    biased;
                    reply = &mut queued.reply => match reply_of(reply) {
                        Reply::Outcome(outcome) => return Ok(outcome),
                        // The session that is being opened stays the caller's.
                        Reply::Turn(reply) => permit = queued.begin_turn(reply).or(permit),
                    },
                    session = &mut beginning => break session,
                }
            };
            let lead = match session {
                Ok(session) => Lead { session, permit: permit.take() },
                Err(error) if queued.leave() => return Err(error),
                // Another caller has sent the operation in the meantime.
                Err(_) => {
                    permit = None;
                    continue;
                }
            };
            let batch = self.take(Some(queued.number()));
            match &batch[..] {
                [] => {}
                [job] if job.is_alone() && queued.is_of(job) => return Ok(Outcome::Alone(Some(lead))),
                _ => drop(tokio::spawn(Arc::clone(self).send_all(batch, lead))),
            }
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn sending(&self) -> &S {
        &self.sending
    }

    /// Begins a session without a permit.
    #[cfg(feature = "postgres")]
    pub(crate) async fn begin_session(&self) -> Result<Lead<S::Session>, StoreError> {
        self.connect(None).await
    }

    async fn connect(&self, permit: Option<Permit>) -> Result<Lead<S::Session>, StoreError> {
        Ok(Lead { session: self.sending.session().await?, permit })
    }

    async fn begin(&self) -> Result<S::Session, StoreError> {
        let session = self.sending.session().await?;
        // Other tasks that became ready at the same time can add their operations first.
        let_others_run().await;
        Ok(session)
    }

    fn take(&self, own: Option<u64>) -> Vec<Job<S>> {
        self.queue.take(own, |operation| self.sending.bytes(operation))
    }

    /// Sends the batch, and then what has gathered meanwhile, as long as there is something.
    async fn send_all(self: Arc<Self>, mut batch: Vec<Job<S>>, mut lead: Lead<S::Session>) {
        while !batch.is_empty() {
            let Some(permit) = self.send(batch, lead).await else { return };
            // Those who were answered can add their next operations.
            let_others_run().await;
            // If no session begins, the permit goes to a caller, which finds out about the error itself.
            let connecting = Deadline::after(PATIENCE).bound(self.connect(Some(permit)));
            let Some(Ok(next)) = connecting.await else { return };
            lead = next;
            batch = self.take(None);
        }
    }

    /// Sends one batch. Returns the permit of `lead` if this task is to send the next batch.
    async fn send(&self, mut batch: Vec<Job<S>>, mut lead: Lead<S::Session>) -> Option<Permit> {
        let operations: Vec<_> = batch.iter().map(|job| Arc::clone(&job.operation)).collect();
        let answers = tokio::select! {
            biased;
            answers = self.sending.send(&operations, &mut lead.session) => answers,
            // The answer may never arrive. A session that is dropped before its answer ends.
            () = all_gone(&mut batch) => return None,
        };
        let Lead { session, permit } = lead;
        drop(session);
        // Before anybody is answered: nothing may drive this runtime after that.
        let permit = permit.filter(|_| self.queue.is_next());
        match answers {
            Ok(answers) => {
                for (job, answer) in batch.into_iter().zip(answers) {
                    job.settle(answer.map_or(Outcome::Alone(None), Outcome::Answered));
                }
            }
            Err(error) if S::is_rejected(&error) => batch.into_iter().for_each(|job| job.settle(Outcome::Alone(None))),
            Err(error) => {
                let error = Arc::new(error);
                for job in batch {
                    job.settle(Outcome::Lost(Arc::clone(&error)));
                }
            }
        }
        permit
    }
}

/// Lets other tasks of this thread run first. Unlike [`tokio::task::yield_now`], which keeps the task for its thread, another thread
/// can continue it meanwhile: a handler may block this one.
async fn let_others_run() {
    let mut has_waited = false;
    poll_fn(|cx| {
        if mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for a reply. Returns `None` if the operation still waits at the end of the patience.
async fn reply_or_turn<S: Sending>(queued: &mut Queued<S>, patience: Deadline) -> Option<Reply<S>> {
    let replied = match patience.bound(&mut queued.reply).await {
        None if queued.still_waits() => return None,
        None => (&mut queued.reply).await,
        Some(replied) => replied,
    };
    Some(reply_of(replied))
}

/// The reply to a caller. A batch that has lost its task replies nothing.
fn reply_of<S: Sending>(replied: Result<Reply<S>, oneshot::error::RecvError>) -> Reply<S> {
    replied.unwrap_or_else(|_| Reply::Outcome(Outcome::Lost(Arc::new(S::lost_with_its_task()))))
}

/// Resolves when no caller of the batch waits any more.
async fn all_gone<S: Sending>(batch: &mut [Job<S>]) {
    for job in batch {
        job.gone().await;
    }
}
