mod promises;
