//! The admin REST API, `/healthz`, `/readyz`, `/metrics`.
