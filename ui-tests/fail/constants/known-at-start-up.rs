use idempotent_runtime::idempotent;

const SCOPE: &str = "charges";

#[idempotent(ttl = std::env::var("TTL").unwrap())]
async fn ttl() {}

#[idempotent(scope = "charges", lease = settings().await.lease)]
async fn lease() {}

#[idempotent(scope = SCOPE, in_flight = wait(settings()?.wait))]
async fn wait() {}

#[idempotent(max_body = std::env::var("MAX_BODY").unwrap().parse().unwrap())]
async fn max_body() {}

#[idempotent(scope = "charges", ttl = charges_ttl)]
async fn variable() {}

#[idempotent(store = std::env::var("STORE").unwrap())]
async fn store() {}

#[idempotent(scope = concat!("charges", "-", "eu"), lease = settings().await.lease)]
async fn long_scope() {}

fn main() {}
