mod hostile_handlers;
mod leases;
mod locked_files;
mod lost_leases;
mod moved_files;
mod open;
mod promises;
mod sharing;
