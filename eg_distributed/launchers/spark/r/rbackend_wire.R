# Values on their way to Spark's RBackend and back, as SparkR writes them: a letter for the type, then the value, big-endian.
# Sourced into the environment of rbackend.R.

# -- R to bytes ----------------------------------------------------------------------------------------------------------------

.int <- function(value) writeBin(as.integer(value), raw(), endian = "big")
.string <- function(value) {
  bytes <- charToRaw(enc2utf8(value))
  c(.int(length(bytes) + 1L), bytes, as.raw(0))
}

.kind <- function(value) {
  if (is.null(value)) return("n")
  if (inherits(value, "jobj")) return("j")
  if (is.raw(value)) return("r")
  if (is.environment(value)) return("e")
  if (is.list(value)) {
    kinds <- unique(vapply(value, .kind, ""))
    return(if (length(kinds) == 1L && kinds %in% c("i", "d", "b", "c", "j")) "a" else "l")
  }
  if (length(value) != 1L) return("a")
  if (is.na(value) && !is.nan(value)) return("n")
  if (inherits(value, "Date")) return("D")
  if (inherits(value, "POSIXt")) return("t")
  if (is.factor(value)) return("c")
  switch(typeof(value), integer = "i", double = "d", logical = "b", character = "c",
         stop("an R value of type ", typeof(value), " can't be passed to the JVM", call. = FALSE))
}

.value <- function(value, kind) {
  switch(kind,
    n = raw(),
    i = .int(value),
    b = .int(value),
    d = writeBin(as.double(value), raw(), endian = "big"),
    t = writeBin(as.double(as.POSIXct(value)), raw(), endian = "big"),
    c = .string(as.character(value)),
    D = .string(as.character(value)),
    j = .string(value$id),
    r = c(.int(length(value)), value),
    a = .array(value),
    l = c(.int(length(value)), unlist(lapply(value, .typed))),
    e = .map(value)
  )
}

.array <- function(values) {
  values <- as.list(values)
  kind <- if (length(values)) .kind(values[[1]]) else "c"
  c(charToRaw(kind), .int(length(values)), unlist(lapply(values, .value, kind)))
}

.map <- function(values) {
  names <- ls(values)
  if (!length(names)) return(.int(0L))
  c(.int(length(names)), .array(names), .int(length(names)), unlist(lapply(mget(names, values), .typed), use.names = FALSE))
}

.typed <- function(value) {
  kind <- .kind(value)
  c(charToRaw(kind), .value(value, kind))
}

# -- bytes to R ----------------------------------------------------------------------------------------------------------------

.take_int <- function(link, deadline = NULL) readBin(.take(link, 4L, deadline), "integer", endian = "big")
.take_string <- function(link, deadline = NULL) {
  bytes <- .take(link, .take_int(link, deadline), deadline)
  text <- rawToChar(bytes[bytes != 0])
  Encoding(text) <- "UTF-8"
  text
}
.take_double <- function(link, deadline) readBin(.take(link, 8L, deadline), "double", endian = "big")

.take_typed <- function(link, kind, deadline) {
  switch(kind,
    n = NULL,
    i = .take_int(link, deadline),
    d = .take_double(link, deadline),
    b = as.logical(.take_int(link, deadline)),
    c = .take_string(link, deadline),
    r = .take(link, .take_int(link, deadline), deadline),
    D = as.Date(.take_string(link, deadline)),
    t = as.POSIXct(.take_double(link, deadline), origin = "1970-01-01"),
    j = .jobj(.take_string(link, deadline)),
    a = .take_array(link, deadline),
    l = lapply(seq_len(.take_int(link, deadline)), function(i) .take_value(link, deadline)),
    e = .take_map(link, deadline),
    s = .take_struct(link, deadline),
    stop("Spark's JVM sent a value of an unknown type: ", kind, call. = FALSE)
  )
}

.take_value <- function(link, deadline) .take_typed(link, rawToChar(.take(link, 1L, deadline)), deadline)

.take_array <- function(link, deadline) {
  kind <- rawToChar(.take(link, 1L, deadline))
  count <- .take_int(link, deadline)
  if (kind == "i") return(as.list(readBin(.take(link, 4L * count, deadline), "integer", count, endian = "big")))
  if (kind == "d") return(as.list(readBin(.take(link, 8L * count, deadline), "double", count, endian = "big")))
  lapply(seq_len(count), function(i) .take_typed(link, kind, deadline))
}

.take_map <- function(link, deadline) {
  found <- list()
  for (i in seq_len(.take_int(link, deadline))) {
    name <- .take_string(link, deadline)
    found[name] <- list(.take_value(link, deadline))
  }
  found
}

.take_struct <- function(link, deadline) {
  names <- .take_value(link, deadline)
  stats::setNames(.take_value(link, deadline), unlist(names))
}
