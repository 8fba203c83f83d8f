use idempotent_runtime::Registry;

fn main() {
    Registry::builder("redis://localhost").build().install().unwrap();
}
