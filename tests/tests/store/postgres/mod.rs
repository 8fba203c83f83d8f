mod answers;
mod given_back;
mod promises;
