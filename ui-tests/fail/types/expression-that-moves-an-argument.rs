use idempotent_runtime::idempotent;

fn eat(text: String) -> String {
    text
}

#[idempotent(caller = eat(body))]
async fn create_charge(body: String) -> String {
    body
}

fn main() {}
