use idempotent_runtime::idempotent;

#[idempotent]
union Charge {
    _cents: u64,
}

fn main() {}
