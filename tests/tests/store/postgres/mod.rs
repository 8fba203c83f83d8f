mod answers;
mod promises;
