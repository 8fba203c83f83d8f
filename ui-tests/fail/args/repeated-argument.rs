use idempotent_runtime::idempotent;

#[idempotent(scope = "charges", scope = "charges")]
async fn handler_scope() {}

#[idempotent(ttl = "24h", ttl = "24h")]
async fn handler_ttl() {}

#[idempotent(cache = [201], cache = [201])]
async fn handler_cache() {}

#[idempotent(header = "x-request-id", header = "x-request-id")]
async fn handler_header() {}

#[idempotent(required, required)]
async fn handler_required() {}

#[idempotent(invalid_key = "ignore", invalid_key = "ignore")]
async fn handler_invalid_key() {}

#[idempotent(methods = [POST], methods = [POST])]
async fn handler_methods() {}

#[idempotent(fingerprint = none, fingerprint = none)]
async fn handler_fingerprint() {}

#[idempotent(in_flight = reject, in_flight = reject)]
async fn handler_in_flight() {}

#[idempotent(lease = "30s", lease = "30s")]
async fn handler_lease() {}

#[idempotent(after_crash = "reject", after_crash = "reject")]
async fn handler_after_crash() {}

#[idempotent(max_body = "4MiB", max_body = "4MiB")]
async fn handler_max_body() {}

#[idempotent(oversize = "rerun", oversize = "rerun")]
async fn handler_oversize() {}

#[idempotent(keep_headers = ["set-cookie"], keep_headers = ["set-cookie"])]
async fn handler_keep_headers() {}

#[idempotent(drop_headers = ["x-trace"], drop_headers = ["x-trace"])]
async fn handler_drop_headers() {}

#[idempotent(store = "payments", store = "payments")]
async fn handler_store() {}

#[idempotent(on_store_error = "run", on_store_error = "run")]
async fn handler_on_store_error() {}

#[idempotent(cache_if = is_final, cache_if = is_final)]
async fn handler_cache_if() {}

#[idempotent(key = order, key = order)]
async fn handler_key() {}

#[idempotent(caller = user, caller = user)]
async fn handler_caller() {}

#[idempotent(crate = "idempotent_runtime", crate = "idempotent_runtime")]
async fn handler_crate() {}

#[idempotent(stream = "pass", stream = "pass")]
async fn handler_stream() {}

#[idempotent(min_key_length = 16, min_key_length = 16)]
async fn handler_min_key_length() {}

#[idempotent(key_format = "uuid", key_format = "uuid")]
async fn handler_key_format() {}

fn main() {}
