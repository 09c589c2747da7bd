//! HTTPRetry to Envoy's retry policy, as Istio translates it (`retry.ConvertPolicy`).

use super::super::routing::{RetryConditions, RetryPolicy};
use crate::api::virtual_service::Retries;

/// The policy, and what of it is not honoured: field (relative to `retries`) and why.
pub fn policy(retries: Option<&Retries>) -> (RetryPolicy, Vec<(&'static str, String)>) {
    let mut policy = RetryPolicy::default();
    let mut remarks = Vec::new();
    let Some(retries) = retries else { return (policy, remarks) };
    policy.attempts = retries.attempts;
    policy.per_try_timeout = retries.per_try_timeout.filter(|timeout| !timeout.is_zero());
    if let Some(pause) = retries.backoff.filter(|pause| !pause.is_zero()) {
        policy.pause = pause;
    }
    if retries.ignore_previous_hosts == Some(false) {
        let remark = "a retry goes to an endpoint that was not tried yet wherever there is one".to_owned();
        remarks.push(("retryIgnorePreviousHosts", remark));
    }
    if !retries.retry_on.is_empty() {
        policy.conditions = RetryConditions::default();
        for written in retries.retry_on.iter().map(|written| written.trim()).filter(|written| !written.is_empty()) {
            if let Some(why) = add(&mut policy, written) {
                remarks.push(("retryOn", format!("{written} {why}: this condition is ignored")));
            }
        }
    }
    (policy, remarks)
}

/// Names of Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`, or status codes. Says why one is not taken.
fn add(policy: &mut RetryPolicy, written: &str) -> Option<&'static str> {
    let conditions = &mut policy.conditions;
    match written {
        "connect-failure" => conditions.connect_failure = true,
        "refused-stream" => conditions.refused_stream = true,
        "5xx" => conditions.five_xx = true,
        "gateway-error" => conditions.gateway_error = true,
        "reset" => conditions.reset = true,
        "reset-before-request" => conditions.reset_before_request = true,
        "retriable-4xx" => conditions.retriable_4xx = true,
        "cancelled" => conditions.grpc.push(1),
        "deadline-exceeded" => conditions.grpc.push(4),
        "resource-exhausted" => conditions.grpc.push(8),
        "internal" => conditions.grpc.push(13),
        "unavailable" => conditions.grpc.push(14),
        // The codes beside it say which.
        "retriable-status-codes" => {}
        "retriable-headers" | "envoy-ratelimited" | "http3-post-connect-failure" => return Some("is not supported"),
        code => match code.parse::<u16>() {
            Ok(code @ 100..=599) => policy.status_codes.push(code),
            _ => return Some("is no condition that Envoy knows"),
        },
    }
    None
}
