//! Tenants.

mod tenants;
