// FFCV includes the umbrella header and calls only these two modules. Found before the distribution's own, this one
// spares a node the other hundred packages of libopencv-dev.
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
