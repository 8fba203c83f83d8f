//! Operations of many callers that go out together: as one statement, one script or one pipeline.
//!
//! While [`Sending::under_way`] calls are under way, further operations gather in a [queue](crate::store::batch::queue). If there are
//! fewer callers, each caller sends its own operation at once and does not wait for other callers.
//!
//! A batch is sent by a task that no caller owns. When the batch is answered, the task sends what has gathered meanwhile in the
//! next one. If nothing has, it gives its [`Permit`] back, and the first caller that waits gets it. The task also ends when all
//! callers of its batch have stopped waiting. The task may be held up: by a connection that does not open, or by a thread that a
//! handler blocks. So a caller that has waited for [`PATIENCE`] sends the queued operations without a permit.
//!
//! If the batch has no answer for an operation, the caller sends that operation in a call of its own. If the server rejects the
//! batch, the cause may be only one of the operations, and sending an operation again does no harm. So each caller then sends its
//! own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::deadline::Deadline;
use crate::store::batch::queue::{BatchQueue, Job, Joined, Lead, Outcome, Permit, Queued, Reply};
use crate::store::batch::sending::Sending;
use crate::store::error::StoreError;
use crate::store::line::Call;

/// How long an operation waits for the calls under way. They may wait for a lock, or for an answer that never arrives.
pub(super) const PATIENCE: Duration = Duration::from_millis(5);

pub(in crate::store) struct Batcher<S: Sending> {
    sending: S,
    queue: Arc<BatchQueue<S>>,
}

impl<S: Sending> Batcher<S> {
    pub(in crate::store) fn new(sending: S) -> Arc<Self> {
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
    pub(in crate::store) async fn submit(
        self: &Arc<Self>,
        operation: &Arc<S::Operation>,
        call: Option<Arc<Call>>,
    ) -> Result<Outcome<S>, StoreError> {
        let (mut queued, mut permit) = match self.queue.join(operation, call) {
            Joined::Alone(permit) => return Ok(Outcome::Alone(Some(self.connect(Some(permit)).await?))),
            Joined::Waiting(queued, permit) => (queued, permit),
        };
        loop {
            if permit.is_none() {
                match reply_or_turn(&mut queued).await {
                    Some(Reply::Outcome(outcome)) => return Ok(outcome),
                    Some(Reply::Turn(turn, reply)) => {
                        permit = Some(turn);
                        queued.reply = reply;
                    }
                    None => {}
                }
            }
            let lead = tokio::select! {
                biased;
                reply = &mut queued.reply => match reply_of(reply) {
                    Reply::Outcome(outcome) => return Ok(outcome),
                    Reply::Turn(turn, reply) => {
                        permit = Some(turn);
                        queued.reply = reply;
                        continue;
                    }
                },
                lead = self.lead(permit.take()) => lead,
            };
            let lead = match lead {
                Ok(lead) => lead,
                Err(error) if queued.leave() => return Err(error),
                // Another caller has sent the operation in the meantime.
                Err(_) => continue,
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
    pub(in crate::store) fn sending(&self) -> &S {
        &self.sending
    }

    /// Begins a session without a permit.
    pub(in crate::store) async fn begin_session(&self) -> Result<Lead<S::Session>, StoreError> {
        self.connect(None).await
    }

    async fn connect(&self, permit: Option<Permit>) -> Result<Lead<S::Session>, StoreError> {
        Ok(Lead { session: self.sending.session().await?, permit })
    }

    async fn lead(&self, permit: Option<Permit>) -> Result<Lead<S::Session>, StoreError> {
        let lead = self.connect(permit).await?;
        // Other tasks that became ready at the same time can add their operations first.
        tokio::task::yield_now().await;
        Ok(lead)
    }

    fn take(&self, own: Option<u64>) -> Vec<Job<S>> {
        self.queue.take(own, |operation| self.sending.bytes(operation))
    }

    /// Sends the batch, and then what has gathered meanwhile, as long as there is something.
    async fn send_all(self: Arc<Self>, mut batch: Vec<Job<S>>, mut lead: Lead<S::Session>) {
        loop {
            let Some(permit) = self.send(batch, lead).await else { return };
            // Those who were answered can add their next operations.
            tokio::task::yield_now().await;
            if !self.queue.is_next() {
                return;
            }
            // After an error, the permit goes to a caller, which finds out about the error itself.
            let Ok(next) = self.connect(Some(permit)).await else { return };
            lead = next;
            batch = self.take(None);
            match &batch[..] {
                [] => return,
                [job] if job.is_alone() => {
                    let job = batch.pop().expect("it has one");
                    return job.settle(Outcome::Alone(Some(lead)));
                }
                _ => {}
            }
        }
    }

    /// Sends one batch. Returns the permit of `lead`, unless nobody waits for the batch any more.
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

/// Waits for a reply. Returns `None` if the operation still waits after [`PATIENCE`].
async fn reply_or_turn<S: Sending>(queued: &mut Queued<S>) -> Option<Reply<S>> {
    let replied = match Deadline::after(PATIENCE).bound(&mut queued.reply).await {
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
