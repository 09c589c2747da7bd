//! The value that an operator has for one record, before it is written as text or JSON.

use std::{net::SocketAddr, time::Duration};

use http::HeaderName;

use super::{
    format::{Field, Header, Operator, Part},
    plain::Plain,
};
use crate::{
    telemetry::record::{Kept, Record, UpstreamHost},
    tls::ClientCertificate,
};

/// What an operator stands for in one record.
pub enum Value<'a> {
    Missing,
    Number(u64),
    /// Others have chosen them.
    Bytes(&'a [u8]),
    Text(String),
    /// `<first>/<second>`
    Pair(&'a str, &'a str),
    Plain(Plain),
}

impl<'a> Value<'a> {
    fn text(text: Option<&'a str>) -> Self {
        match text {
            Some(text) if !text.is_empty() => Self::Bytes(text.as_bytes()),
            _ => Self::Missing,
        }
    }

    fn cut(self, max: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(&bytes[..boundary(bytes, max)]),
            Self::Text(mut text) => {
                text.truncate(boundary(text.as_bytes(), max));
                Self::Text(text)
            }
            Self::Pair(first, second) => Self::Text(format!("{first}/{second}")).cut(max),
            Self::Plain(plain) => {
                let mut text = Vec::new();
                plain.write(&mut text);
                Self::Text(String::from_utf8_lossy(&text).into_owned()).cut(max)
            }
            Self::Missing | Self::Number(_) => self,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The last place not beyond `max` that does not split a UTF-8 character.
fn boundary(bytes: &[u8], max: usize) -> usize {
    if bytes.len() <= max {
        return bytes.len();
    }
    (0..=max).rev().find(|at| bytes[*at] & 0xc0 != 0x80).unwrap_or(0)
}

impl Operator {
    /// The value for `record`, cut to the operator's length.
    pub fn value<'a>(&self, record: &'a Record) -> Value<'a> {
        let value = self.field.value(record);
        match self.max {
            Some(max) => value.cut(max),
            None => value,
        }
    }
}

impl Field {
    fn value<'a>(&self, record: &'a Record) -> Value<'a> {
        match self {
            Self::StartTime(form) => start_time(record, form.as_deref()),
            Self::Request(first, second) => match request(record, first) {
                Value::Missing => second.as_ref().map_or(Value::Missing, |second| request(record, second)),
                value => value,
            },
            Self::Response(first, second) => match response(record, first) {
                Value::Missing => second.as_ref().map_or(Value::Missing, |second| response(record, second)),
                value => value,
            },
            Self::Protocol => Value::text(record.protocol),
            Self::ResponseCode => Value::Number(record.response_code.into()),
            Self::ResponseFlags => flags(record, super::super::record::Flag::name),
            Self::ResponseFlagsLong => flags(record, super::super::record::Flag::long_name),
            Self::ResponseCodeDetails => Value::text(record.response_code_details.as_deref()),
            Self::ConnectionTerminationDetails => match &record.downstream_transport_failure_reason {
                // The field stands without quotes in the default format, so that it is one word, as Envoy's details are.
                Some(reason) => Value::Text(reason.split_whitespace().collect::<Vec<_>>().join("_")),
                None => Value::text(record.connection_termination_details.as_deref()),
            },
            Self::UpstreamTransportFailureReason => Value::text(record.upstream_transport_failure_reason.as_deref()),
            Self::DownstreamTransportFailureReason => {
                Value::text(record.downstream_transport_failure_reason.as_deref())
            }
            Self::DownstreamPeerUriSan => of_client(record, |certificate| names(&certificate.uri_names)),
            Self::DownstreamPeerDnsSan => of_client(record, |certificate| names(&certificate.dns_names)),
            Self::DownstreamPeerSubject => of_client(record, |certificate| Value::text(Some(&certificate.subject))),
            Self::DownstreamPeerFingerprint => of_client(record, |certificate| Value::text(Some(&certificate.hash))),
            Self::DownstreamTlsVersion => Value::text(record.downstream_session.map(|session| session.version)),
            Self::DownstreamTlsCipher => Value::text(record.downstream_session.map(|session| session.cipher)),
            Self::SourcePrincipal => Value::text(record.source_identity.as_deref()),
            Self::BytesReceived => Value::Number(record.bytes_received),
            Self::BytesSent => Value::Number(record.bytes_sent),
            Self::Duration => Value::Number(millis(record.duration)),
            Self::GrpcStatusNumber => record.grpc_status.map_or(Value::Missing, |status| Value::Number(status.into())),
            Self::UpstreamHost => match &record.upstream_host {
                None => Value::Missing,
                Some(UpstreamHost::Address(address)) => Value::Plain(Plain::Address(*address)),
                Some(UpstreamHost::Named(name)) => Value::text(Some(name)),
            },
            Self::UpstreamCluster => Value::text(record.cluster_name()),
            Self::UpstreamLocal(part) => address(record.upstream_local_address, *part),
            Self::DownstreamLocal(part) => address(record.downstream_local_address, *part),
            Self::DownstreamRemote(part) => address(record.downstream_remote_address, *part),
            Self::RequestedServerName => Value::text(record.requested_server_name.as_deref()),
            Self::RouteName => Value::text(record.route_name.as_deref()),
            Self::Workload => Value::Pair(&record.workload.namespace, &record.workload.name),
            Self::Absent => Value::Missing,
        }
    }
}

fn of_client<'a>(record: &'a Record, value: impl Fn(&'a ClientCertificate) -> Value<'a>) -> Value<'a> {
    record.client_certificate.as_deref().map_or(Value::Missing, value)
}

fn names(names: &[String]) -> Value<'_> {
    match names {
        [one] => Value::text(Some(one)),
        [] => Value::Missing,
        many => Value::Text(many.join(",")),
    }
}

fn start_time(record: &Record, form: Option<&str>) -> Value<'static> {
    let Some(form) = form else { return Value::Plain(Plain::Time(record.start)) };
    let Ok(time) = jiff::Timestamp::try_from(record.start) else { return Value::Missing };
    jiff::fmt::strtime::format(form, time).map_or(Value::Missing, Value::Text)
}

fn request<'a>(record: &'a Record, header: &Header) -> Value<'a> {
    match header {
        Header::Method => Value::text(record.method.as_deref()),
        Header::Path => Value::text(record.path.as_deref()),
        Header::Authority => Value::text(record.authority.as_deref()),
        // What is captured was sent in the clear.
        Header::Scheme => Value::text(record.protocol.map(|_| if record.downstream_tls { "https" } else { "http" })),
        // Never added towards MESH_EXTERNAL, but every logged request has one.
        Header::Name(name) if name == "x-request-id" => match lookup(&record.request_headers, name) {
            Value::Missing => record.request_id.map_or(Value::Missing, |id| Value::Plain(Plain::Id(id))),
            value => value,
        },
        Header::Name(name) => lookup(&record.request_headers, name),
    }
}

fn response<'a>(record: &'a Record, name: &HeaderName) -> Value<'a> {
    match lookup(&record.response_headers, name) {
        Value::Missing if name == "x-envoy-upstream-service-time" => record
            .upstream_service_time
            // A header, hence a string in JSON too.
            .map_or(Value::Missing, |time| Value::Plain(Plain::Digits(millis(time)))),
        value => value,
    }
}

fn lookup<'a>(headers: &'a Kept, name: &HeaderName) -> Value<'a> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Value::Missing,
        (Some(only), None) => Value::Bytes(only.as_bytes()),
        // Fields of one name are one list (RFC 9110 5.3).
        (Some(first), Some(second)) => {
            let all = [first, second].into_iter().chain(values);
            let texts: Vec<_> = all.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            Value::Text(texts.join(","))
        }
    }
}

fn flags(record: &Record, name: fn(super::super::record::Flag) -> &'static str) -> Value<'static> {
    match record.flags.as_slice() {
        // Envoy writes `-` here in JSON too, where other missing values are null.
        [] => Value::Plain(Plain::Word("-")),
        [one] => Value::Plain(Plain::Word(name(*one))),
        many => Value::Text(many.iter().map(|flag| name(*flag)).collect::<Vec<_>>().join(",")),
    }
}

fn address(address: Option<SocketAddr>, part: Part) -> Value<'static> {
    let Some(address) = address else { return Value::Missing };
    match part {
        Part::Whole => Value::Plain(Plain::Address(address)),
        Part::Ip => Value::Plain(Plain::Ip(address.ip())),
        Part::Port => Value::Number(address.port().into()),
    }
}
