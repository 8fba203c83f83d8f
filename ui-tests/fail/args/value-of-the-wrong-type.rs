use idempotent_runtime::idempotent;

#[idempotent(scope = charges)]
async fn handler_scope() {}

#[idempotent(ttl = 24)]
async fn handler_ttl() {}

#[idempotent(cache = "created")]
async fn handler_cache() {}

#[idempotent(header = X_REQUEST)]
async fn handler_header() {}

#[idempotent(required = "yes")]
async fn handler_required() {}

#[idempotent(invalid_key = 7)]
async fn handler_invalid_key() {}

#[idempotent(methods = POST)]
async fn handler_methods() {}

#[idempotent(in_flight = "5s")]
async fn handler_in_flight() {}

#[idempotent(lease = 30)]
async fn handler_lease() {}

#[idempotent(after_crash = true)]
async fn handler_after_crash() {}

#[idempotent(max_body = 4096)]
async fn handler_max_body() {}

#[idempotent(oversize = 413)]
async fn handler_oversize() {}

#[idempotent(keep_headers = "set-cookie")]
async fn handler_keep_headers() {}

#[idempotent(drop_headers = [X_TRACE])]
async fn handler_drop_headers() {}

#[idempotent(store = payments)]
async fn handler_store() {}

#[idempotent(on_store_error = run())]
async fn handler_on_store_error() {}

#[idempotent(crate = idem)]
async fn handler_crate() {}

#[idempotent(stream = false)]
async fn handler_stream() {}

#[idempotent(min_key_length = "16")]
async fn handler_min_key_length() {}

#[idempotent(key_format = 4)]
async fn handler_key_format() {}

fn main() {}
