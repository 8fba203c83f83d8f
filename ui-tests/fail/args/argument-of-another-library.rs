use idempotent_runtime::idempotent;

#[idempotent(expires = "24h")]
async fn handler_expires() {}

#[idempotent(retention = "24h")]
async fn handler_retention() {}

#[idempotent(timeout = "5s")]
async fn handler_timeout() {}

#[idempotent(lock_ttl = "30s")]
async fn handler_lock_ttl() {}

#[idempotent(wait = "5s")]
async fn handler_wait() {}

#[idempotent(status = [201])]
async fn handler_status() {}

#[idempotent(statuses = [201])]
async fn handler_statuses() {}

#[idempotent(on_crash = "reject")]
async fn handler_on_crash() {}

#[idempotent(name = "charges")]
async fn handler_name() {}

#[idempotent(key_header = "x-request-id")]
async fn handler_key_header() {}

#[idempotent(body_limit = "4MiB")]
async fn handler_body_limit() {}

#[idempotent(user = user.id)]
async fn handler_user() {}

#[idempotent(backend = "payments")]
async fn handler_backend() {}

fn main() {}
