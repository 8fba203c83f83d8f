//! The command line.

use clap::{ArgGroup, Args, Parser, Subcommand};
use idempotent_runtime::RecordKey;
use idempotent_runtime::operate::{Keys, State};

const EXAMPLES: &str = "\
Examples:
  idempotent --store sqlite://idempotency.db list --state in_flight
  idempotent --store postgres://app@db/shop stuck --json
  idempotent --store redis://cache:6379 show --scope charges --caller acct_17 8e03978e-40d5-43dd-bc93-6894a57f9324
  idempotent --store redis://cache:6379 purge --scope charges --caller acct_17 8e03978e-40d5-43dd-bc93-6894a57f9324
  IDEMPOTENT_STORE=postgres://app:secret@db/shop idempotent list   # keeps the password out of the list of processes

Exit status:
  0  done
  1  the key has no entry (show, purge); something is stuck (stuck --check)
  2  the arguments are wrong
  3  the store cannot be opened, or does not answer
  4  the purge was not confirmed";

/// Show and purge the entries of a store of idempotent-runtime: claims of running handlers, and recorded responses. A body is
/// never shown. Keys are shown only with --reveal.
#[derive(Parser)]
#[command(name = "idempotent", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    /// Print JSON, in the format of the inspector.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print complete keys.
    #[arg(long, global = true)]
    pub(crate) reveal: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args)]
pub(crate) struct StoreOptions {
    // Parsed later: clap would print a value that it rejects, with its password.
    /// Where the store is: `sqlite://PATH`, `redis://HOST:PORT` or `postgres://USER@HOST/DATABASE`.
    #[arg(long = "store", value_name = "URL", env = "IDEMPOTENT_STORE", hide_env_values = true, global = true)]
    pub(crate) url: Option<String>,
    /// The server is part of a Redis Cluster: read the whole Cluster.
    #[arg(long, global = true)]
    pub(crate) cluster: bool,
    /// The prefix of the keys in Redis [default: idempotency:].
    #[arg(long, global = true)]
    pub(crate) prefix: Option<String>,
    /// The schema of the tables in PostgreSQL [default: idempotency].
    #[arg(long, global = true)]
    pub(crate) schema: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Count all entries by state, and list them: the oldest claims first, the newest records first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Only those in this state: outcome_unknown, damaged, past_lease, in_flight, completed, response_not_recorded.
        #[arg(long)]
        state: Option<State>,
    },
    /// List what a person should look at: claims with an expired lease, and damaged entries.
    ///
    /// `outcome_unknown` is the claim of a handler with `after_crash = "reject"`: it never expires, and every retry is rejected
    /// until it is purged. `past_lease` is any other claim: the next retry runs the handler again.
    Stuck {
        #[command(flatten)]
        filter: Filter,
        /// Exit with 1 if anything is stuck, for monitoring.
        #[arg(long)]
        check: bool,
    },
    /// Show the entry of one key.
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Delete the entry of one key: a retry runs its handler again.
    Purge {
        #[command(flatten)]
        target: Target,
        /// Do not ask for a confirmation. Without a terminal, nothing is purged unless this is given.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
pub(crate) struct Filter {
    /// Only this scope.
    #[arg(long)]
    pub(crate) scope: Option<String>,
    /// How many entries to list; all are counted.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Args)]
#[command(group = ArgGroup::new("entry").required(true).args(["key", "id"]))]
pub(crate) struct Target {
    /// The key, as the client sends it, without quotes.
    #[arg(requires = "scope")]
    key: Option<String>,
    /// The scope of its handler.
    #[arg(long, requires = "key")]
    scope: Option<String>,
    /// Its caller, if the handler names one.
    #[arg(long, requires = "key")]
    caller: Option<String>,
    /// The registry uses `digest_keys`: digest caller and key before the search.
    #[arg(long, requires = "key")]
    digested: bool,
    /// The id that a listing shows, instead of a key. The store is searched for it.
    #[arg(long)]
    id: Option<String>,
}

/// One entry.
pub(crate) enum Entry {
    Key(RecordKey),
    Id(String),
}

impl Target {
    pub(crate) fn entry(self) -> Entry {
        match (self.key, self.scope) {
            (Some(key), Some(scope)) => {
                let key = RecordKey::new(&scope, self.caller.as_deref(), &key);
                Entry::Key(if self.digested { key.digested() } else { key })
            }
            _ => Entry::Id(self.id.unwrap_or_default().to_ascii_lowercase()),
        }
    }
}

impl Arguments {
    pub(crate) fn keys(&self) -> Keys {
        if self.reveal { Keys::Revealed } else { Keys::Masked }
    }
}
