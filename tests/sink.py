class Sink: pass
