"""Where Ray runs the work: conversion as tasks, the loop under Ray Train, the search under Ray Tune."""
