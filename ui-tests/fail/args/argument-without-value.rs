use idempotent_runtime::idempotent;

#[idempotent(scope)]
async fn handler_scope() {}

#[idempotent(ttl)]
async fn handler_ttl() {}

#[idempotent(cache)]
async fn handler_cache() {}

#[idempotent(cache_if)]
async fn handler_cache_if() {}

#[idempotent(header)]
async fn handler_header() {}

#[idempotent(key)]
async fn handler_key() {}

#[idempotent(invalid_key)]
async fn handler_invalid_key() {}

#[idempotent(methods)]
async fn handler_methods() {}

#[idempotent(caller)]
async fn handler_caller() {}

#[idempotent(fingerprint)]
async fn handler_fingerprint() {}

#[idempotent(in_flight)]
async fn handler_in_flight() {}

#[idempotent(lease)]
async fn handler_lease() {}

#[idempotent(after_crash)]
async fn handler_after_crash() {}

#[idempotent(max_body)]
async fn handler_max_body() {}

#[idempotent(oversize)]
async fn handler_oversize() {}

#[idempotent(keep_headers)]
async fn handler_keep_headers() {}

#[idempotent(drop_headers)]
async fn handler_drop_headers() {}

#[idempotent(store)]
async fn handler_store() {}

#[idempotent(on_store_error)]
async fn handler_on_store_error() {}

#[idempotent(crate)]
async fn handler_crate() {}

#[idempotent(stream)]
async fn handler_stream() {}

#[idempotent(min_key_length)]
async fn handler_min_key_length() {}

#[idempotent(key_format)]
async fn handler_key_format() {}

fn main() {}
