#[cfg(test)]
#[macro_use]
mod support;
#[cfg(test)]
mod api_keys;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod server {
    mod pages;
    mod sealing;
    mod secrecy;
    mod telemetry;
}
