mod bounds;
mod runtimes;
