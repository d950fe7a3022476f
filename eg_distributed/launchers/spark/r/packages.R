# Sessions by the packages SparkR and sparklyr, where they are installed on the node. Sourced by spark_r.R.

# SparkR over the JVM that is there already, as it does under spark-submit.
with_sparkr <- function(client) {
  if (!requireNamespace("SparkR", quietly = TRUE)) {
    give_up(paste("R at", R.home(), "has no package SparkR"), "install it there, or set EG_R_SESSION=builtin")
  }
  ns <- asNamespace("SparkR")
  state <- ns$.sparkREnv
  made <- NULL
  # SparkR's functions look for the session themselves: what they look for is it, made when they do.
  awaited <- c(".sparkRsession", ".sparkRjsc")
  promise <- function() {
    for (name in awaited) local({
      mine <- name
      makeActiveBinding(mine, function() {
        session()
        get(mine, state)
      }, state)
    })
  }
  session <- function() {
    if (is.null(made)) {
      rm(list = awaited, envir = state)
      on.exit(if (is.null(made)) promise())
      client$backend$start()
      on.exit(client$backend$asked(), add = TRUE)
      client$backend$ask()
      session <- tryCatch(
        SparkR::sparkR.session(appName = Sys.getenv("EG_R_NAME"), enableHiveSupport = FALSE),
        error = function(e) stop(client$backend$explain(conditionMessage(e)), call. = FALSE)
      )
      context <- SparkR::sparkR.callJMethod(session, "sparkContext")
      SparkR::sparkR.callJMethod(context, "setLocalProperty", "spark.job.interruptOnCancel", "true")
      # A second client of the same JVM, for interrupts. *kept*: SparkR has the JVM forget what R doesn't hold.
      client$backend$control <- suspendInterrupts(client$.open())
      client$backend$context <- structure(list2env(list(id = context$id)), class = "jobj")
      client$backend$kept <- context
      try(client$backend$announce(client$backend$context), silent = TRUE)
      made <<- session
    }
    made
  }
  # SparkR's own call loses its place in the answer when it is interrupted, and every later one gets the wrong answer.
  original <- get("invokeJava", ns)
  unlockBinding("invokeJava", ns)
  assign("invokeJava", function(...) {
    arguments <- list(...) # one may be a call itself
    client$backend$failure <- ""
    told <- function(e) client$backend$failure <- conditionMessage(e) # what SparkR makes of it is the first line
    tryCatch(withCallingHandlers(allowInterrupts(do.call(original, arguments)), error = told), interrupt = function(condition) {
      suspendInterrupts({
        client$.cancel()
        try(close(get(".sparkRCon", state)), silent = TRUE)
        rm(".sparkRCon", envir = state)
        ns$connectBackend("localhost", client$backend$port, 6000, client$backend$secret)
        if (!is.null(client$backend$kept)) {
          original(FALSE, client$backend$kept$id, "setLocalProperty", "spark.job.interruptOnCancel", "true")
        }
      })
      stop(condition)
    })
  }, ns)
  lockBinding("invokeJava", ns)
  promise()
  library(SparkR, warn.conflicts = FALSE)
  list(session = session, context = function() {
    spark <- session()
    SparkR::sparkR.callJStatic("org.apache.spark.sql.api.r.SQLUtils", "getJavaSparkContext", spark)
  })
}

# sparklyr has a JVM part and a spark-submit of its own; it is given the kernelspec's options.
with_sparklyr <- function() {
  if (!requireNamespace("sparklyr", quietly = TRUE)) {
    give_up(paste("R at", R.home(), "has no package sparklyr"), "install it there, or set EG_R_SESSION=builtin")
  }
  made <- NULL
  session <- function() {
    if (is.null(made)) {
      made <<- sparklyr::spark_connect(
        master = Sys.getenv("EG_R_MASTER"), spark_home = Sys.getenv("SPARK_HOME"), app_name = Sys.getenv("EG_R_NAME"),
        config = list(sparklyr.shell.conf = strsplit(Sys.getenv("EG_R_CONF"), "\n", fixed = TRUE)[[1]])
      )
    }
    made
  }
  list(session = session, context = session)
}
