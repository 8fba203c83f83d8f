mod given_back;
mod promises;
