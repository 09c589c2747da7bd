//! Whether there is another attempt: what the policy says of a failure, and what is left of its attempts.

use std::time::Duration;

use http::{HeaderMap, Response};
use rand::RngExt as _;

use crate::{
    engine::{
        balance::{ClusterState, Counted},
        http::{headers, log::RequestLog},
    },
    limits,
    mesh::{Pool, RetryConditions, RetryPolicy},
    telemetry::record::Flag,
};

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No connection, or one that ended before the request went out: nothing was processed.
    Unsent,
    /// h2 says that the request was not processed.
    Refused,
    /// The connection ended, or time was up, before the response's head came.
    Unanswered,
}

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Again,
    /// Nothing asks for it, or the body cannot be sent again.
    Stop,
    /// All attempts were made.
    Spent,
    /// `http.maxRetries` requests are being retried already.
    Overflow,
}

impl Next {
    /// Says in the log why there is no other attempt.
    pub fn tell(self, log: &mut RequestLog) {
        match self {
            Self::Spent => log.flag(Flag::URX),
            Self::Overflow => log.flag(Flag::UO),
            Self::Again | Self::Stop => {}
        }
    }
}

/// The attempts of one request.
pub struct Retries<'a> {
    policy: &'a RetryPolicy,
    pool: &'a Pool,
    state: &'a ClusterState,
    made: u32,
    /// Counts against `maxRetries` while a retry is under way.
    counted: Option<Counted>,
}

impl<'a> Retries<'a> {
    pub fn new(policy: &'a RetryPolicy, pool: &'a Pool, state: &'a ClusterState) -> Self {
        Self { policy, pool, state, made: 0, counted: None }
    }

    /// The number of the attempt that is under way, 1 for the first.
    pub fn attempt(&self) -> u32 {
        self.made + 1
    }

    pub fn after_trouble(&mut self, trouble: Trouble, body_is_whole: bool) -> Next {
        self.next(self.policy.conditions.cover(trouble) && body_is_whole)
    }

    pub fn after_answer<B>(&mut self, response: &Response<B>, body_is_whole: bool) -> Next {
        self.next(body_is_whole && self.policy.wants_another(response.status().as_u16(), response.headers()))
    }

    fn next(&mut self, wanted: bool) -> Next {
        self.counted = None;
        if !wanted || self.policy.attempts == 0 {
            return Next::Stop;
        }
        if self.made >= self.policy.attempts {
            return Next::Spent;
        }
        self.counted = self.state.retry(self.pool);
        if self.counted.is_none() {
            return Next::Overflow;
        }
        self.made += 1;
        Next::Again
    }

    /// Full jitter over a pause that doubles (Envoy's retry back-off).
    pub async fn pause(&self) {
        let growth = 2_u32.saturating_pow(self.made.saturating_sub(1)).min(limits::RETRY_PAUSE_GROWTH);
        let longest = u64::try_from(self.policy.pause.saturating_mul(growth).as_nanos()).unwrap_or(u64::MAX);
        let pause = Duration::from_nanos(rand::rng().random_range(0..=longest));
        tokio::time::sleep(pause).await;
    }
}

impl RetryPolicy {
    /// Some answers, or none at all, lead to another attempt although the request went out: its body must be kept.
    pub(super) fn needs_body(&self, h2: bool, grpc: bool) -> bool {
        let on = &self.conditions;
        self.attempts > 0
            && (on.five_xx
                || on.gateway_error
                || on.reset
                || on.retriable_4xx
                || !self.status_codes.is_empty()
                || (h2 && on.refused_stream)
                || (grpc && !on.grpc.is_empty()))
    }

    fn wants_another(&self, status: u16, fields: &HeaderMap) -> bool {
        let on = &self.conditions;
        let wanted = (on.five_xx && (500..600).contains(&status))
            || (on.gateway_error && (502..=504).contains(&status))
            || (on.retriable_4xx && status == 409)
            || self.status_codes.contains(&status)
            || (!on.grpc.is_empty() && headers::grpc_status(fields).is_some_and(|code| on.grpc.contains(&code)));
        // Whoever is told to slow down does not come again at once.
        wanted && !fields.contains_key("x-envoy-ratelimited")
    }
}

impl RetryConditions {
    fn cover(&self, trouble: Trouble) -> bool {
        let any = self.reset || self.five_xx || self.gateway_error;
        any || match trouble {
            Trouble::Unsent => self.connect_failure || self.reset_before_request,
            Trouble::Refused => self.refused_stream,
            Trouble::Unanswered => false,
        }
    }
}

/// The policy where no route has one.
pub fn default_policy() -> &'static RetryPolicy {
    static DEFAULT: std::sync::LazyLock<RetryPolicy> = std::sync::LazyLock::new(RetryPolicy::default);
    &DEFAULT
}

/// The policy towards a pod's own application, which the client's proxy has one for already: no attempt but the first
/// counts, and only a pooled connection that turns out to be dead is replaced.
pub fn of_an_application() -> &'static RetryPolicy {
    static POLICY: std::sync::LazyLock<RetryPolicy> =
        std::sync::LazyLock::new(|| RetryPolicy { conditions: RetryConditions::default(), ..RetryPolicy::default() });
    &POLICY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(conditions: RetryConditions, status_codes: Vec<u16>) -> RetryPolicy {
        RetryPolicy { conditions, status_codes, ..RetryPolicy::default() }
    }

    fn none() -> RetryConditions {
        RetryConditions::default()
    }

    #[test]
    fn conditions_cover_what_envoy_says() {
        use Trouble::{Refused, Unanswered, Unsent};
        let all = [Unsent, Refused, Unanswered];
        for (conditions, covered) in [
            (RetryPolicy::default().conditions, [true, true, false]),
            (RetryConditions { connect_failure: true, ..none() }, [true, false, false]),
            (RetryConditions { refused_stream: true, ..none() }, [false, true, false]),
            (RetryConditions { reset_before_request: true, ..none() }, [true, false, false]),
            (RetryConditions { reset: true, ..none() }, [true; 3]),
            (RetryConditions { five_xx: true, ..none() }, [true; 3]),
            (RetryConditions { gateway_error: true, ..none() }, [true; 3]),
            (RetryConditions { retriable_4xx: true, ..none() }, [false; 3]),
        ] {
            assert_eq!(all.map(|trouble| conditions.cover(trouble)), covered, "{conditions:?}");
        }
    }

    #[test]
    fn answers_are_judged_by_status_and_grpc_status() {
        let fields = |lines: &[(&'static str, &str)]| -> HeaderMap {
            lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let five = policy(RetryConditions { five_xx: true, ..none() }, vec![]);
        let gateway = policy(RetryConditions { gateway_error: true, ..none() }, vec![]);
        let conflict = policy(RetryConditions { retriable_4xx: true, ..none() }, vec![429]);
        for (policy, yes, no) in
            [(&five, vec![500, 503, 599], vec![499, 200]), (&gateway, vec![502, 503, 504], vec![500, 505])]
        {
            assert!(yes.iter().all(|status| policy.wants_another(*status, &HeaderMap::new())));
            assert!(!no.iter().any(|status| policy.wants_another(*status, &HeaderMap::new())));
        }
        assert!(conflict.wants_another(409, &HeaderMap::new()) && conflict.wants_another(429, &HeaderMap::new()));
        assert!(!five.wants_another(503, &fields(&[("x-envoy-ratelimited", "true")])));
        let default = RetryPolicy::default();
        assert!(default.wants_another(200, &fields(&[("grpc-status", "14")])));
        assert!(!default.wants_another(200, &fields(&[("grpc-status", "13")])));
        assert!(!default.wants_another(503, &HeaderMap::new()));
    }

    #[test]
    fn attempts_and_the_budget_run_out() {
        let pool = Pool { max_retries: Some(1), ..Pool::default() };
        let policy = RetryPolicy::default();
        let state = ClusterState::default();
        let mut first = Retries::new(&policy, &pool, &state);
        assert_eq!(first.after_trouble(Trouble::Unsent, false), Next::Stop);
        assert_eq!(first.after_trouble(Trouble::Unsent, true), Next::Again);
        let mut second = Retries::new(&policy, &pool, &state);
        assert_eq!(second.after_trouble(Trouble::Unsent, true), Next::Overflow);
        assert_eq!(first.after_trouble(Trouble::Unsent, true), Next::Again);
        assert_eq!((first.attempt(), first.after_trouble(Trouble::Unsent, true)), (3, Next::Spent));
        // What is over does not count any more.
        assert_eq!(second.after_trouble(Trouble::Unsent, true), Next::Again);
        let never = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
        assert_eq!(Retries::new(&never, &pool, &state).after_trouble(Trouble::Unsent, true), Next::Stop);
    }
}
